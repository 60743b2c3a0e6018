// Package security has the tests that attack plusone as a stranger would, by its ports. It has nothing else.
package security
