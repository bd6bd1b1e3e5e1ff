"""How the ranks of one engine find each other."""

import logging
import os
import socket
import threading
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from engine_service.errors import StartupError
from engine_service.layers.ranks import ALONE, Ranks

_HOST = "127.0.0.1"
_INTERFACE = "lo"
_LEAVE_SECONDS = 5.0
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rank's place in its group, as its process is told.

    Attributes:
        rank: The rank, from 0.
        size: Number of ranks.
        port: Port of the group's store on this host; 0 without a group.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class Rendezvous:
    """Where the ranks of one engine meet, at a port that the system chose for it alone."""

    _has_used_cuda = False

    def __init__(self, size: int, device: torch.device) -> None:
        """Opens the port, on this host's loopback interface.

        Raises:
            StartupError: This process already has a group, which torch allows only one of, or had
                one on GPUs, after which torch's symmetric memory never meets that of new ranks.
        """
        if dist.is_initialized():
            raise StartupError(
                f"tensor_parallel_size is {size}, but this process already uses torch.distributed, "
                "perhaps for another model of several ranks; close that, or use another process"
            )
        if device.type == "cuda":
            if Rendezvous._has_used_cuda:
                raise StartupError(
                    f"tensor_parallel_size is {size}, but this process had a model of several "
                    "ranks on GPUs before; use another process"
                )
            Rendezvous._has_used_cuda = True
        self._size = size
        listener = socket.create_server((_HOST, 0))
        self._port: int = listener.getsockname()[1]
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            _HOST,
            self._port,
            is_master=True,
            wait_for_workers=False,
            # The store owns the descriptor from here on.
            master_listen_fd=listener.detach(),
        )

    def place(self, rank: int) -> Place:
        """Returns the place of a rank."""
        return Place(rank=rank, size=self._size, port=self._port)

    def join(self, device: torch.device) -> Ranks:
        """Joins as the first rank; waits for the others."""
        return _join(self.place(0), device, self._store)


def join(place: Place, device: torch.device) -> Ranks:
    """Joins the group; waits for the other ranks."""
    if place.size == 1:
        return ALONE
    return _join(
        place,
        device,
        dist.TCPStore(  # type: ignore[attr-defined]
            _HOST, place.port, wait_for_workers=False
        ),
    )


def leave(device: torch.device) -> None:
    """Leaves the group, if there is one; NCCL may refuse to end, and is given some seconds."""
    if not dist.is_initialized():
        return
    if device.type == "cpu":
        dist.destroy_process_group()
        return
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)
    if leaving.is_alive():
        logger.warning("process group not left seconds=%g", _LEAVE_SECONDS)


def _join(place: Place, device: torch.device, store: Store) -> Ranks:
    # All ranks are on this host, and nobody else may connect to them.
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _INTERFACE)  # noqa: TID251 - settings of libraries
    dist.init_process_group(
        _BACKENDS[device.type],
        store=store,
        rank=place.rank,
        world_size=place.size,
        device_id=device if device.type == "cuda" else None,
    )
    return Ranks(place.rank, place.size)
