"""What plugin authors test with: `Harness` (an engine under the serving layer), `EngineKit` (the conformance suite) and `fakes`."""
