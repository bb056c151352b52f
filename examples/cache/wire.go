package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"

	"github.com/redispatterns/redispatterns/cache"
)

const (
	maxText  = 4 << 10 // bytes
	maxTexts = 100     // in one request
	maxBody  = 1 << 20 // bytes
)

// refusal is an error that the client may read.
type refusal struct {
	status int
	reason string
}

func (r refusal) Error() string { return r.reason }

// answer makes an http.HandlerFunc of a function that returns what is to be written as JSON; nil is no content.
func answer(handle func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		value, err := handle(r)
		var refused refusal
		switch {
		case errors.As(err, &refused):
			http.Error(w, refused.reason, refused.status)
		case errors.Is(err, cache.ErrClosed):
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
		case err != nil && r.Context().Err() != nil: // the client has left
		case err != nil:
			log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
			http.Error(w, "internal error", http.StatusInternalServerError)
		case value == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value) // fails only if the client has left
		}
	}
}

func readTexts(body io.Reader) ([]string, error) {
	content, err := io.ReadAll(body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", maxBody)}
	case err != nil:
		return nil, refusal{http.StatusBadRequest, "the body cannot be read"}
	}
	var texts []string
	if err := json.Unmarshal(content, &texts); err != nil {
		return nil, refusal{http.StatusBadRequest, "the body is not a JSON array of strings"}
	}
	if len(texts) == 0 || len(texts) > maxTexts {
		return nil, refusal{http.StatusBadRequest, fmt.Sprintf("the array must have 1 to %d texts", maxTexts)}
	}
	for _, text := range texts {
		if err := checkText(text); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

func checkText(text string) error {
	switch {
	case strings.TrimSpace(text) == "":
		return refusal{http.StatusBadRequest, "text is empty"}
	case len(text) > maxText:
		return refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("text is longer than %d bytes", maxText)}
	}
	return nil
}
