#!/usr/bin/env python3
"""A client of zhx: publishes a temperature each second, answers requests for it, and feeds its watchdog.

    zhxctl start; ZHX_NAME=thermo python3 example.py      (as a client of zhx it has ZHX_NAME and ZHX_SOCKET from it)
"""

import time

import zhx

with zhx.connect() as c:
    c.arm()  # from now on zhx restarts this program if it stops feeding
    next_reading = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= next_reading:
            next_reading = now + 1
            with open("/proc/uptime") as f:  # a board has a sensor here
                reading = f.read().split()[0]
            c.publish("temp.cpu", reading, retain=True)
            c.feed()
        event = c.receive(timeout=next_reading - now)
        if event is None:
            continue
        if event.kind == "request":
            event.reply(reading)
        elif event.kind == "message":
            print(event.sender, "says", event.text, "(again)" if event.repeat else "", flush=True)
