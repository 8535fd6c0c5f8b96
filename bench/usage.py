"""What a server uses, all its processes together."""

import psutil


class Usage:
    """CPU seconds and resident bytes of a process and its children."""

    def __init__(self, pid: int) -> None:
        process = psutil.Process(pid)
        self._processes = [process, *process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds so far."""
        times = [process.cpu_times() for process in self._processes]
        return sum(time.user + time.system for time in times)

    def resident(self) -> int:
        """Bytes now."""
        return sum(process.memory_info().rss for process in self._processes)
