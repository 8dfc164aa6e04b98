//go:build tools

// Package jaeger names the program that `make tools` builds for the tests, so that go.mod pins it.
package jaeger

import _ "github.com/jaegertracing/jaeger/cmd/all-in-one"
