from fedbone.teaching import machine


def test_a_machine_for_which_steps_are_faster_counts_as_this_fast(monkeypatch):
    monkeypatch.setattr(machine, "STEP_CPU_S", 1e6)
    assert machine.slowness(steps=1) == 1


def test_slowness_is_the_time_of_a_step_over_the_one_written_down(monkeypatch):
    steps = iter([0.0, 9.0, 10.0, 10.3, 20.0, 20.2, 30.0, 30.4])
    monkeypatch.setattr(machine.time, "process_time", lambda: next(steps))
    monkeypatch.setattr(machine, "STEP_CPU_S", 0.1)
    threads = machine.torch.get_num_threads()
    assert round(machine.slowness(steps=3), 9) == 3  # the first step, of 9 s, is not counted
    assert machine.torch.get_num_threads() == threads
