"""What a former primary's log was kept for holds up nobody who sends to it."""

import shutil
from pathlib import Path

from sustain._native import Engine, File, LogTail, Replica


def test_a_floor_from_when_a_host_shipped_does_not_keep_its_receiver_from_trimming(tmp_path: Path) -> None:
    """Its shipper ended and left the floor of the log where required destinations needed it."""
    former, newer = str(tmp_path / "former.sus"), str(tmp_path / "newer.sus")
    Engine.format(former, 2 << 20, 2 << 20, "disk")
    shutil.copy(former, newer)
    writer, tail = Engine(former), LogTail(former)
    tail.set_floor(8)
    tail.close()
    writer.close()
    primary, sender = Engine(newer), LogTail(newer)
    file, received = File(primary, "f"), primary.position
    replica = Replica(former)
    for round_ in range(40):  # more than twice what the log holds
        file.pwrite(bytes([round_ + 1]) * (128 << 10), 0)
        end = primary.commit()
        with sender.log_view(received, end - received) as view, replica.buffer(end - received) as room:
            assert len(room) == len(view)
            room[:] = view
        assert replica.advance(end - received) == end
        received = end
    assert replica.words()["tail"] > 2 << 20
    replica.close()
    sender.close()
    primary.close()
