"""`spad app`: a page that places cameras, shows views while they are drawn and builds models."""
