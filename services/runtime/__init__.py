"""The mesh: one server bootstrap, one channel factory, one error model, one way to configure and to trace."""
