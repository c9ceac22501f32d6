"""What the gateway relies on in uvicorn."""

import inspect

from uvicorn.protocols.http import flow_control, httptools_impl


def test_uvicorn_still_has_what_direct_writes_use() -> None:
    """Where one of these is gone, streams fall back to plain ASGI: right, but slower. See docs/adr/0006."""
    cycle = inspect.getsource(httptools_impl.RequestResponseCycle.__init__)
    assert "self.chunked_encoding" in cycle
    assert "self.disconnected" in cycle
    assert "write_paused" in inspect.getsource(flow_control.FlowControl)
    protocol = inspect.getsource(httptools_impl.HttpToolsProtocol)
    assert all(name in protocol for name in ("self.cycle", "self.flow", "self.transport", "self.app_state"))
