#!/usr/bin/env python3
"""Writes the log of a run as TensorBoard's event files: a curve a number, named PHASE/KEY.

    python3 dev/tensorboard.py RUN [--out FOLDER] [--follow]
    tensorboard --logdir RUN/tensorboard

FOLDER is RUN/tensorboard if none is given; event files that are in it are replaced. --follow waits for
what the run still writes. Needs the package tensorboard or tensorboardX.
"""
import argparse
import glob
import os
import sys

import run_log

HERE = os.path.dirname(os.path.abspath(__file__))


def package():
    """(writer of a folder's event files, Event, Summary). This file has the name of a package, so
    Python must not look for that here."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        try:
            from tensorboardX.event_file_writer import EventFileWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError:
            sys.exit("tensorboard.py needs the package tensorboard or tensorboardX: pip install tensorboard")
    return EventFileWriter, event_pb2.Event, summary_pb2.Summary


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="--out folder of a run")
    parser.add_argument("--out", help="folder of the event files; RUN/tensorboard")
    parser.add_argument("--follow", action="store_true", help="wait for what the run still writes")
    given = parser.parse_args()
    run_log.config(given.run)  # says so where there is no run
    out = given.out or os.path.join(given.run, "tensorboard")
    EventFileWriter, Event, Summary = package()
    for old in glob.glob(os.path.join(glob.escape(out), "events.out.tfevents.*")):
        os.remove(old)
    start = os.path.getmtime(os.path.join(given.run, "config"))  # it is written when the run begins
    writer, events = EventFileWriter(out), 0
    for phase, step, seconds, numbers in run_log.lines(given.run, given.follow):
        values = [Summary.Value(tag=f"{phase}/{key}", simple_value=v) for key, v in numbers.items()]
        writer.add_event(Event(wall_time=start + seconds, step=step, summary=Summary(value=values)))
        events += 1
        if given.follow:
            writer.flush()
    writer.close()
    print(f"{events} lines of the log are in {out}")


if __name__ == "__main__":
    main()
