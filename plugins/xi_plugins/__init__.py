"""xi's built-in plugins. Each imports only `xi_core`, and loads through entry points as any third party's does."""
