// Asks a router one question and prints the answer as it streams.
//
// docs/clients.md says how to build it; generate [ADDRESS] [QUESTION]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	routerv1 "pagestream/router/v1"
)

func main() {
	address, question := "127.0.0.1:50050", "introduce yourself"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 {
		question = os.Args[2]
	}
	if err := generate(address, question); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", address, err)
		os.Exit(1)
	}
	fmt.Println()
}

func generate(address, question string) error {
	connection, err := grpc.Dial(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	temperature, maxTokens := float32(0.6), int32(256)
	stream, err := routerv1.NewRouterServiceClient(connection).Generate(ctx, &routerv1.GenerateRequest{
		Input: &routerv1.GenerateRequest_Chat{Chat: &routerv1.Chat{
			Messages: []*routerv1.ChatMessage{{Role: "user", Content: question}},
		}},
		SamplingParams: &routerv1.SamplingParams{Temperature: &temperature, MaxTokens: &maxTokens},
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Print(response.Text)
	}
}
