"""The connector thread's queue: nothing is lost, and a wait always ends."""

from __future__ import annotations

import threading
import time

from baton.kvtransfer.mailbox import Mailbox


def test_items_come_in_order_and_then_none() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(3):
        mailbox.put(number)
    assert [mailbox.take() for _ in range(5)] == [0, 1, 2, None, None]


def test_every_wait_of_microseconds_ends() -> None:
    """After an item that was taken without waiting, a tiny wait used to last for ever."""
    mailbox: Mailbox[int] = Mailbox()
    taken, waits = [], 0
    stop = threading.Event()

    def take() -> None:
        nonlocal waits
        while not stop.is_set():
            item = mailbox.take(20e-6)
            waits += 1
            if item is not None:
                taken.append(item)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    for number in range(2000):
        mailbox.put(number)
        if number % 50 == 0:
            time.sleep(0.001)
            before = waits
            end_s = time.monotonic() + 30.0
            while waits == before:
                assert time.monotonic() < end_s, "the taker sleeps for ever"
                time.sleep(0.001)
    while len(taken) < 2000 and thread.is_alive():
        time.sleep(0.001)
    stop.set()
    thread.join(30.0)
    assert taken == list(range(2000))
