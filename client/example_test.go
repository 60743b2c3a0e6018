package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
)

// exampleServer starts a server on loopback, in this process.
func exampleServer() (addr string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	plusonev1.RegisterCounterServiceServer(server, newFakeStore())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	return listener.Addr().String(), func() {
		server.Stop()
		if err := <-served; err != nil {
			log.Fatal(err)
		}
	}
}

func Example() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	ctx := context.Background()
	receipt, err := counters.Increment(ctx, "views/post:42", 1)
	if err != nil {
		log.Fatal(err)
	}
	// MinAsOf reads your own write, whichever server answers.
	count, err := counters.Get(ctx, "views/post:42", client.MinAsOf(receipt.AsOf))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(receipt.Outcome, count.Key, count.Count)
	// Output: Applied views/post:42 1
}

// An event that may be delivered twice has an id of its own: counted under that, it counts once.
func ExampleWithRequestID() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	for range 2 {
		receipt, err := counters.Increment(context.Background(), "plays/song:7", 1,
			client.WithRequestID("play-event-1093"))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(receipt.Outcome)
	}
	// Output:
	// Applied
	// Duplicate
}

// An actor's second view of the day does not count.
func ExampleOncePer() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	for _, user := range []string{"user:1", "user:2", "user:1"} {
		receipt, err := counters.Increment(context.Background(), "views/post:42", 1, client.OncePer(user, 24*time.Hour))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(user, receipt.Outcome)
	}
	// Output:
	// user:1 Applied
	// user:2 Applied
	// user:1 AlreadyCounted
}

func ExampleClient_BatchIncrement() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	ctx := context.Background()
	_, err = counters.BatchIncrement(ctx, []client.Entry{
		{Key: "tokens/user:1", Delta: 812},
		{Key: "tokens/user:2", Delta: 64},
		{Key: "tokens/user:1", Delta: -12},
	})
	if err != nil {
		log.Fatal(err)
	}
	counts, err := counters.BatchGet(ctx, []string{"tokens/user:1", "tokens/user:2"}, client.Fresh())
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range counts {
		fmt.Println(c.Key, c.Count)
	}
	// Output:
	// tokens/user:1 800
	// tokens/user:2 64
}

// Two users like a post, one of them twice, and one thinks better of it.
func ExampleClient_Like() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	ctx := context.Background()
	for _, user := range []string{"user:1", "user:2", "user:1"} {
		receipt, err := counters.Like(ctx, "likes/post:42", user)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(user, receipt.Changed, receipt.Count)
	}
	receipt, err := counters.Unlike(ctx, "likes/post:42", "user:1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("user:1", receipt.Changed, receipt.Count)
	// Output:
	// user:1 true 1
	// user:2 true 2
	// user:1 false 2
	// user:1 true 1
}

// A page of posts shows which of them its reader likes.
func ExampleClient_Liked() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	ctx := context.Background()
	if _, err := counters.Like(ctx, "likes/post:43", "user:1"); err != nil {
		log.Fatal(err)
	}
	states, err := counters.Liked(ctx, "user:1", []string{"likes/post:42", "likes/post:43"})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range states {
		fmt.Println(s.Key, s.Liked)
	}
	// Output:
	// likes/post:42 false
	// likes/post:43 true
}

// loseFirstAnswer makes a network that loses the first answer, and a caller who then has no more time.
func loseFirstAnswer(giveUp context.CancelFunc) client.Option {
	first := true
	return client.WithDialOptions(grpc.WithUnaryInterceptor(func(
		ctx context.Context, method string, req, reply any,
		conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if first {
			first = false
			giveUp()
			return status.Error(codes.Unavailable, "connection lost")
		}
		return err
	}))
}

// A change whose outcome is unknown is repeated under the id that it had, now or later: it is counted once.
func ExampleError() {
	addr, stop := exampleServer()
	defer stop()

	hurried, cancel := context.WithCancel(context.Background())
	counters, err := client.Dial(addr, loseFirstAnswer(cancel))
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	_, err = counters.Increment(hurried, "views/post:42", 1)
	var failure *client.Error
	if errors.As(err, &failure) && failure.InDoubt {
		receipt, err := counters.Increment(context.Background(), "views/post:42", 1,
			client.WithRequestID(failure.RequestID))
		if err != nil {
			log.Fatal(err) // still in doubt: nothing but an answer settles it
		}
		fmt.Println(receipt.Outcome)
	}
	// Output: Duplicate
}

// Views are counted by the thousand: the sums are sent, and each view is counted once.
func ExampleCoalescer() {
	addr, stop := exampleServer()
	defer stop()

	counters, err := client.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	defer counters.Close()

	ctx := context.Background()
	views, err := counters.NewCoalescer(client.OnFailure(func(sum client.Entry, err error) {
		log.Printf("%d views are not counted: %v", sum.Delta, err)
	}))
	if err != nil {
		log.Fatal(err)
	}
	for range 10_000 {
		if err := views.Add(ctx, "views/post:42", 1); err != nil {
			log.Fatal(err)
		}
	}
	// At the end of the program, or what is pending is lost.
	if err := views.Close(ctx); err != nil {
		log.Fatal(err)
	}
	count, err := counters.Get(ctx, "views/post:42", client.Fresh())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(count.Count)
	// Output: 10000
}
