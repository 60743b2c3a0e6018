package chaos_test

import (
	"encoding/binary"
	"net"
	"testing"

	"google.golang.org/protobuf/proto"
)

// Of HTTP/2 (RFC 9113), what a client needs that no library would be: one that does not read, or does not finish.
const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	frameData         = 0x0
	frameHeaders      = 0x1
	frameSettings     = 0x4
	frameWindowUpdate = 0x8

	flagEndStream  = 0x1
	flagEndHeaders = 0x4

	settingInitialWindowSize = 0x4
	maxWindow                = 1<<31 - 1
	firstWindow              = 1<<16 - 1
	maxFrame                 = 1 << 14
)

// rawClient is an HTTP/2 connection whose answers nobody understands.
type rawClient struct {
	net.Conn
	stream uint32 // the last one
}

// dialRaw opens a connection, of which the system shall keep little that is not read.
func dialRaw(t testing.TB, addr string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
	}
	return &rawClient{Conn: conn}
}

// greet lets the server send so many bytes of each answer, and of all together as many as it likes.
func (c *rawClient) greet(window uint32) error {
	setting := binary.BigEndian.AppendUint16(nil, settingInitialWindowSize)
	setting = binary.BigEndian.AppendUint32(setting, window)
	b := appendFrame([]byte(preface), frameSettings, 0, 0, setting)
	b = appendFrame(b, frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, maxWindow-firstWindow))
	_, err := c.Write(b)
	return err
}

// call sends the first bytes of a message, or all of it if it has no more. It must fit into firstWindow.
func (c *rawClient) call(method string, message []byte, bytes int) error {
	if c.stream == 0 {
		c.stream = 1
	} else {
		c.stream += 2
	}
	// Fields of the static table of HPACK (RFC 7541), by name or as a whole, and others.
	fields := []byte{0x83, 0x86} // :method: POST, :scheme: http
	fields = appendText(append(fields, 0x04), method)
	fields = appendText(append(fields, 0x01), "plusone")
	fields = appendText(append(fields, 0x0f, 0x10), "application/grpc") // content-type
	fields = appendText(appendText(append(fields, 0), "te"), "trailers")
	b := appendFrame(nil, frameHeaders, flagEndHeaders, c.stream, fields)
	sent := min(bytes, len(message))
	for first := 0; first < sent; first += maxFrame {
		end := min(first+maxFrame, sent)
		var flags byte
		if end == len(message) {
			flags = flagEndStream
		}
		b = appendFrame(b, frameData, flags, c.stream, message[first:end])
	}
	_, err := c.Write(b)
	return err
}

// messageOf is a request as gRPC sends it: not compressed, and with its length before it.
func messageOf(t testing.TB, request proto.Message) []byte {
	t.Helper()
	text, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...)
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// appendText appends a text of less than 127 bytes as HPACK does.
func appendText(b []byte, text string) []byte {
	return append(append(b, byte(len(text))), text...)
}
