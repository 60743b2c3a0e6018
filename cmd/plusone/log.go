package main

import (
	"io"
	"log/slog"
)

// environment is what a command gets from its process.
type environment struct {
	stdout io.Writer
	logger *slog.Logger
}

type logFlags struct {
	LogLevel  slog.Level `group:"log" default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat string     `group:"log" default:"text" enum:"text,json" help:"Form of the log on stderr: text for people, json for machines."`
}

func (f *logFlags) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: f.LogLevel}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
