"""MEID (Li and Xu, AAAI 2023): two experts that look at different frames, with distillation from head to tail."""
