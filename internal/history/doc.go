// Package history records what clients of a counter service asked and were told, and checks it against what the
// service promises. It knows nothing of plusone: neither its code, nor its storage, nor its protocol.
//
// # Basics
//
// A history is a sequence of events. Clients tell a [Recorder] of every call just before they send it and just after
// it was answered, so the order of events is a real-time order: what was answered before another call began,
// happened before it. Whoever injects faults tells what may have been lost. A [Checker] follows the events, one by
// one, and notes every [Violation]; it runs beside the clients, and by [Replay] on a file that a Recorder wrote.
//
// For each key it keeps four sums: what was acknowledged and what may have been counted, of positive and of negative
// deltas. At any moment a counter lies between
//
//	acknowledged increases + possible decreases  and  possible increases + acknowledged decreases
//
// and a read, which takes some time, between what was the least and the most meanwhile. For each pair of key and actor
// it keeps the likes that may be the last one. The work of an event does not grow with the length of the history,
// and neither does memory, but for changes that are in doubt.
//
// # Caveats
//
// Bounds are sound, not tight: what it reports is a broken promise, while a broken promise that hides between the
// bounds of concurrent calls may escape. That is what the suite that plants bugs is for.
package history
