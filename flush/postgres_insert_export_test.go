package flush

// LooksForKeys reports whether new keys are looked for, also where a sample has none that are known.
func (p *Postgres) LooksForKeys() bool { return p.firstMode() != insertSampled }
