"A test run started in the background inherits a deaf ear for Ctrl-C, and so would all it starts."
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
