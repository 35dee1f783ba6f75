"""What a call is, before any work: its arguments checked (`problem`, `attention`), who computes it (`plan`, by
`limits`), and the answer remembered for calls that look alike (`memo`). Nothing here computes with a tensor.
"""
