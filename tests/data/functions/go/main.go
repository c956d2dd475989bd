// A runtime and its handlers, with nothing but Go's standard library.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var api = "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"

func main() {
	for {
		next, err := http.Get(api + "next")
		if err != nil {
			os.Exit(1)
		}
		event, _ := io.ReadAll(next.Body)
		next.Body.Close()
		id := next.Header.Get("Lambda-Runtime-Aws-Request-Id")
		answer, err := handle(event, next.Header)
		if err != nil {
			told, _ := json.Marshal(map[string]string{"errorType": "Go.Error", "errorMessage": err.Error()})
			post(id+"/error", told)
		} else {
			post(id+"/response", answer)
		}
	}
}

func post(target string, body []byte) {
	if said, err := http.Post(api+target, "application/json", bytes.NewReader(body)); err == nil {
		io.Copy(io.Discard, said.Body)
		said.Body.Close()
	}
}

func handle(event []byte, header http.Header) ([]byte, error) {
	switch os.Getenv("_HANDLER") {
	case "main.echo":
		return event, nil
	case "main.introspect":
		deadline, _ := strconv.ParseInt(header.Get("Lambda-Runtime-Deadline-Ms"), 10, 64)
		environ := map[string]string{}
		for _, pair := range os.Environ() {
			name, value, _ := strings.Cut(pair, "=")
			environ[name] = value
		}
		return json.Marshal(map[string]any{
			"event":   json.RawMessage(event),
			"id":      header.Get("Lambda-Runtime-Aws-Request-Id"),
			"name":    os.Getenv("AWS_LAMBDA_FUNCTION_NAME"),
			"left":    deadline - time.Now().UnixMilli(),
			"environ": environ,
		})
	case "main.fails":
		return nil, fmt.Errorf("no such thing")
	case "main.hangs":
		time.Sleep(time.Minute)
	case "main.large":
		var wanted struct{ Size int }
		json.Unmarshal(event, &wanted)
		return json.Marshal(strings.Repeat("x", wanted.Size))
	}
	return []byte("null"), nil
}
