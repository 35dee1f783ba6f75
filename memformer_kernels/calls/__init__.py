"""What a call is, before any work: its arguments checked (`problem`, `attention`, `register_update`), who computes it
(`plan`, by `limits`), all of it in one answer (`call`), remembered for calls that look alike (`memo`).

Networks are told by shapes alone; the options of attention become weights of its tokens.
"""
