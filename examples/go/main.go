// Ask a fleet and print the answer token by token, with go-redis: XADD, then XREAD. With -subscribe the chunks come by
// the result's channel, and the stream, which is the truth, fills every gap.
//
//	go mod tidy && go run . "The capital of France is"
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

// After so long without a chunk, one may have been lost: a channel keeps nothing for a connection that broke.
const silence = 2 * time.Second

type request struct {
	ID          string  `json:"id"`
	Prompt      string  `json:"prompt"`
	MaxTokens   int     `json:"max_tokens"`
	Temperature float64 `json:"temperature"`
}

type chunk struct {
	I    int    `json:"i"` // index of the first token
	O    int    `json:"o"` // offset of the text in code points
	IDs  []int  `json:"ids"`
	Text string `json:"text"`
	Done *done  `json:"done"`
}

type done struct {
	Reason string          `json:"reason"`
	Usage  json.RawMessage `json:"usage"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// reader prints chunks, each token once, whichever way and however often they come.
type reader struct {
	numTokens, numChars int
	done                *done
}

// take prints what is new of a chunk; false if there is a gap before it.
func (r *reader) take(text string) (bool, error) {
	var c chunk
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return false, err
	}
	if c.I > r.numTokens {
		return false, nil
	}
	characters := []rune(c.Text)
	if known := r.numChars - c.O; known < len(characters) {
		fmt.Print(string(characters[max(0, known):]))
	}
	r.numTokens = max(r.numTokens, c.I+len(c.IDs))
	r.numChars = max(r.numChars, c.O+len(characters))
	if c.Done != nil {
		r.done = c.Done
	}
	return true, nil
}

// readOn waits for entries behind the tokens that are held: an entry's id is the number of tokens written once it is in.
func (r *reader) readOn(ctx context.Context, client *redis.Client, out string, wait time.Duration) error {
	streams, err := client.XRead(ctx, &redis.XReadArgs{
		Streams: []string{out, fmt.Sprintf("%d-0", r.numTokens)}, Block: wait,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, message := range streams[0].Messages {
		if _, err := r.take(message.Values["json"].(string)); err != nil {
			return err
		}
	}
	return nil
}

// listen takes one message of the channel, or what the stream holds where there is none or one is missing.
func (r *reader) listen(ctx context.Context, client *redis.Client, out string, messages <-chan *redis.Message) error {
	select {
	case message := <-messages:
		if taken, err := r.take(message.Payload); taken || err != nil {
			return err
		}
	case <-time.After(silence):
	}
	return r.readOn(ctx, client, out, time.Millisecond)
}

func run(ctx context.Context, client *redis.Client, queue, prompt string, subscribe bool) (*done, error) {
	prefix := "hr:{" + queue + "}:"
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	asked := request{ID: fmt.Sprintf("%x", id), Prompt: prompt, MaxTokens: 32}
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	out := prefix + "out:" + asked.ID
	var messages <-chan *redis.Message
	if subscribe {
		channel := client.Subscribe(ctx, out)
		defer channel.Close()
		if _, err := channel.Receive(ctx); err != nil { // the confirmation: from here on nothing is missed
			return nil, err
		}
		messages = channel.Channel()
	}
	err = client.XAdd(ctx, &redis.XAddArgs{
		Stream: prefix + "requests", Values: []string{"id", asked.ID, "json", string(body)},
	}).Err()
	if err != nil {
		return nil, err
	}
	r := &reader{}
	for r.done == nil && err == nil {
		if subscribe {
			err = r.listen(ctx, client, out, messages)
		} else {
			err = r.readOn(ctx, client, out, 5*time.Second)
		}
	}
	return r.done, err
}

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}

func main() {
	subscribe := flag.Bool("subscribe", false, "take the chunks from the result's channel")
	flag.Parse()
	options, err := redis.ParseURL(environment("REDIS_URL", "redis://127.0.0.1:6380/0"))
	if err != nil {
		log.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	ended, err := run(context.Background(), client, environment("QUEUE", "smollm2-135m"), flag.Arg(0), *subscribe)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println()
	if ended.Error != nil {
		log.Fatal(ended.Error.Message)
	}
	fmt.Fprintln(os.Stderr, ended.Reason, string(ended.Usage))
}
