"""Networks of the diffusers library behind this program's interface: any of them is v(x, t, s, label)."""
