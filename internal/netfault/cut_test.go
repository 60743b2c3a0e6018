package netfault

import "testing"

func TestCutRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	otherClient, otherServer := r.connect()
	r.CutOn("needle", CutRequest)
	roundTrip(client, server)
	server.send("a needle in an answer")
	client.wantText("a needle in an answer")
	if r.Fired() {
		t.Fatal("fired without the pattern")
	}
	client.send("a needle in a request")
	client.wantReset()
	server.wantReset()
	if !r.Fired() {
		t.Error("not fired")
	}
	// Once.
	otherClient.send("a needle")
	otherServer.wantText("a needle")

	r.CutOn("needle", CutRequest)
	if r.Fired() {
		t.Error("fired before the pattern came")
	}
	r.Heal()
	otherClient.send("a needle")
	otherServer.wantText("a needle")
}

// A pattern may come in several reads.
func TestCutAcrossReads(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	r.CutOn("needle", CutRequest)
	for _, part := range []string{"nee", "dneed", "l"} {
		client.send(part)
		server.wantText(part) // so it was read alone
	}
	client.send("e")
	client.wantReset()
	server.wantReset()
}

func TestCutAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	r.CutOn("needle", CutAnswer)
	client.send("a needle")
	server.wantText("a needle")
	if !r.Fired() {
		t.Error("not fired")
	}
	server.send("answer")
	client.wantReset()
	server.wantReset()

	client, server = r.connect()
	r.CutOn("needle", CutAnswer)
	client.send("a needle")
	server.wantText("a needle")
	_ = server.Close()
	client.wantReset()
}

// An answer of Postgres is complete when the server is ready for the next query.
func TestCutAnswerOfPostgres(t *testing.T) {
	t.Parallel()
	const greeting = "\x00\x00\x00\x09\x00\x03\x00\x00\x00"
	r := newRig(t)
	client, server := r.connect()
	client.send(greeting)
	server.wantText(greeting)
	r.CutOn("needle", CutAnswer)
	client.send("a needle")
	server.wantText("a needle")
	for _, part := range []string{"a row", "Z\x00\x00", "\x00"} {
		server.send(part)
		client.send("x")
		server.wantText("x") // the connection is still open
	}
	server.send("\x05I")
	client.wantReset()
	server.wantReset()
}
