"""What the scripts of the checkout do, here, so that a wheel can do it, too."""
