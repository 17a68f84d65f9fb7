"""Many real nnInteractive clients at once, each with its own scan: every mask is the one that a client gets alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from nninteractive_server import own_session, running

pytestmark = pytest.mark.slow
SHAPE, SPACING = (18, 20, 22), (6.0, 6.0, 6.0)


def image_of(number: int) -> np.ndarray:
    """Smooth noise, HU; no two alike."""
    coarse = np.random.default_rng(number).normal(40, 120, (6, 5, 11))
    return np.kron(coarse, np.ones((3, 4, 2))).astype(np.int16)


def clicks_of(number: int) -> list[tuple[tuple[int, ...], bool]]:
    """Where a client clicks; the first is in the tumour."""
    rng = np.random.default_rng(100 + number)
    return [(tuple(rng.integers((2, 2, 2), np.array(SHAPE) - 2).tolist()), n != 1) for n in range(4)]


@pytest.mark.parametrize(("clients", "capacity"), [(8, 16), (32, 32)])
def test_every_mask_is_the_one_that_a_client_gets_alone(network, clients, capacity):
    """They share little memory, so that features are dropped and encoded again."""
    got: dict[int, list[np.ndarray]] = {}
    failed: list[BaseException] = []
    start = threading.Barrier(clients)
    memory = clients * (image_of(0).nbytes + 1_500_000)  # room for every mask and the steps back, not for all features

    def work(server, number: int) -> None:
        try:
            with server.client(image_of(number), spacing=SPACING) as client:
                masks = []
                start.wait(120)
                for index, positive in clicks_of(number):
                    client.add_point_interaction(index, include_interaction=positive)
                    masks.append(client.target_buffer.copy())
                client.undo()
                masks.append(client.target_buffer.copy())
                client.reset_interactions()
                client.add_point_interaction(clicks_of(number)[0][0], include_interaction=True)
                got[number] = [*masks, client.target_buffer.copy()]
        except BaseException as error:
            failed.append(error)
            start.abort()

    with running(network, capacity=capacity, memory_bytes=memory) as server:
        threads = [threading.Thread(target=work, args=(server, number)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert not failed, failed
        assert not server.sessions.open and server.sessions.memory.taken == 0
    assert sorted(got) == list(range(clients))
    for number, masks in got.items():
        own = own_session(network, image_of(number), SPACING)
        wanted = [own.click(index, positive).array for index, positive in clicks_of(number)]
        wanted += [
            own.undo().array,
            own_session(network, image_of(number), SPACING).click(clicks_of(number)[0][0]).array,
        ]
        for mask, want in zip(masks, wanted, strict=True):
            np.testing.assert_array_equal(mask, want, err_msg=f"client {number}")
    assert len({masks[0].tobytes() for masks in got.values()}) > clients // 2  # no mask to mix up with another's
