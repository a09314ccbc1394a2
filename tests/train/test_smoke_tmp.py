import time
def test_a(tiny_world): 
    pass
def test_b(tiny_run):
    print(tiny_run.scores)
    import subprocess
    print(subprocess.run(["find", str(tiny_run.folder), "-maxdepth","4"],capture_output=True,text=True).stdout)
    print((tiny_run.folder/"log.jsonl").read_text())
