import signal

# A background job of a shell is started with Ctrl-C ignored, and so is all that it starts: tests that interrupt would
# wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
