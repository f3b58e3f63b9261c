"""The field's benchmarks for hallucination, as their public programs compute them: CHAIR (captions
of photographs), AMBER (captions and probes) and POPE (probes). Their files are not in this course:
each module says where they come from."""
