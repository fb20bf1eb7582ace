package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"zhx/ipc"
)

// A program that zhx starts: it serves its name, and feeds its watchdog as long as it does its work.
func Example() {
	ctx := context.Background()
	c, err := ipc.Dial(ctx, ipc.Options{Wait: true})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(c.Register(ctx, ""), c.Subscribe(ctx, "sensor.*", ipc.LatestOnly, 0), c.Arm(ctx)); err != nil {
		log.Fatal(err)
	}
	for {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		e, err := c.Receive(soon)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			log.Fatal(err) // the name was taken over
		}
		switch e := e.(type) {
		case *ipc.Message:
			fmt.Println(e.From, "says", e.Text())
			if e.Request {
				e.Reply([]byte("so it is"))
			}
			e.Done()
		case *ipc.Publication:
			fmt.Printf("%s is %s\n", e.Topic, e.Body)
		}
		if err := c.Feed(ctx); err != nil {
			log.Fatal(err)
		}
	}
}

// A message that must not be lost, and none that comes late.
func ExampleConn_Send() {
	ctx := context.Background()
	c, err := ipc.Dial(ctx, ipc.Options{Name: "plan"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Send(ctx, "log", []byte("begun"), ipc.At(ipc.Handled)); err != nil {
		log.Print(err)
	}
	_, err = c.Send(ctx, "motor", []byte("go"), ipc.NoHold())
	if refused := (*ipc.Error)(nil); errors.As(err, &refused) && refused.Code == ipc.ErrRestarting {
		log.Print("it is back in ", refused.Retry)
	}
}

func ExampleConn_Request() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := ipc.Dial(ctx, ipc.Options{Name: "plan"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	switch r, err := c.Request(ctx, "motor", []byte("speed?")); {
	case errors.Is(err, ipc.ErrNoName), errors.Is(err, ipc.ErrStopped):
		fmt.Println("there is no motor")
	case err != nil:
		fmt.Println(err)
	case r.Failed:
		fmt.Printf("the motor: %s\n", r.Body)
	default:
		fmt.Printf("%s rpm\n", r.Body)
	}
}

// Something large travels as a file.
func ExampleWithFiles() {
	ctx := context.Background()
	c, err := ipc.Dial(ctx, ipc.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	frame, err := os.Open("/dev/shm/frame")
	if err != nil {
		log.Fatal(err)
	}
	defer frame.Close()
	if _, err := c.Send(ctx, "display", []byte("1920x1080"), ipc.WithFiles(frame)); err != nil {
		log.Print(err)
	}
}
