"""The figures that `baton top` reads from a gateway, and the screen that it makes of them."""
