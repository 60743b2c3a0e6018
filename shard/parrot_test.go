package shard

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/rueidis"
)

// respValue is a value of the Redis protocol: a list, or the byte of a type and a text.
type respValue struct {
	kind byte
	text string
	list []respValue
}

// parseRESP reads a value that is written as in the protocol, but without lengths: words that begin with their type,
// and lists in brackets, such as "[:0 $text [] _]". There is no text that it does not take.
func parseRESP(text string) respValue {
	nested := [][]respValue{nil}
	for word := range strings.FieldsFuncSeq(strings.NewReplacer("[", " [ ", "]", " ] ").Replace(text), func(r rune) bool { return r == ' ' }) {
		last := len(nested) - 1
		switch {
		case word == "[" && last < 8:
			nested = append(nested, []respValue{})
		case word == "]" && last > 0:
			nested[last-1] = append(nested[last-1], respValue{kind: '*', list: nested[last]})
			nested = nested[:last]
		default:
			nested[last] = append(nested[last], parseWord(word))
		}
	}
	for last := len(nested) - 1; last > 0; last-- {
		nested[last-1] = append(nested[last-1], respValue{kind: '*', list: nested[last]})
	}
	if len(nested[0]) == 0 {
		return respValue{kind: '_'}
	}
	return nested[0][0]
}

func parseWord(word string) respValue {
	v := respValue{kind: word[0], text: word[1:]}
	_, notInt := strconv.ParseInt(v.text, 10, 64)
	switch {
	case v.kind == '$', v.kind == '_' && v.text == "", v.kind == ':' && notInt == nil && v.text[0] != '+':
	case strings.ContainsRune("+-,(", rune(v.kind)):
		v.text = strings.NewReplacer("\r", ".", "\n", ".").Replace(v.text)
	case v.kind == '#' && (v.text == "t" || v.text == "f"):
	default:
		v = respValue{kind: '$', text: word}
	}
	return v
}

func (v respValue) encode() string {
	switch v.kind {
	case '*':
		var items strings.Builder
		for _, item := range v.list {
			items.WriteString(item.encode())
		}
		return fmt.Sprintf("*%d\r\n%s", len(v.list), items.String())
	case '$':
		return fmt.Sprintf("$%d\r\n%s\r\n", len(v.text), v.text)
	default:
		return string(v.kind) + v.text + "\r\n"
	}
}

// int64 is the number that an item of a list is, or writes.
func (v respValue) int64() (int64, bool) {
	n, err := strconv.ParseInt(v.text, 10, 64)
	return n, err == nil && v.kind != '*'
}

// parrot is a Redis that gives the same answer to all commands but those by which a client introduces itself.
type parrot struct{ answer atomic.Pointer[string] }

func newParrot(tb testing.TB) (*parrot, rueidis.Client) {
	tb.Helper()
	p := &parrot{}
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{"parrot:6379"}, ForceSingleClient: true, DisableCache: true, DisableRetry: true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			here, there := net.Pipe()
			go p.serve(there)
			return here, nil
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return p, client
}

// serve answers until the client hangs up.
func (p *parrot) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		command, err := readCommand(in)
		if err != nil {
			return
		}
		answer := "+OK\r\n"
		switch command {
		case "HELLO":
			answer = "%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n"
		case "CLIENT", "PING":
		default:
			answer = *p.answer.Load()
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// readCommand reads a command and returns its name.
func readCommand(in *bufio.Reader) (name string, err error) {
	var words, length int
	if _, err := fmt.Fscanf(in, "*%d\r\n", &words); err != nil {
		return "", err
	}
	for i := range words {
		if _, err := fmt.Fscanf(in, "$%d\r\n", &length); err != nil {
			return "", err
		}
		word := make([]byte, length+2)
		if _, err := io.ReadFull(in, word); err != nil {
			return "", err
		}
		if i == 0 {
			name = string(word[:length])
		}
	}
	return name, nil
}
