// Package checker asks an external checker whether an actor may change a counter, over gRPC or as JSON over HTTP.
//
// A Client keeps answers for a while, asks the same question once at a time however many wait for the answer, and asks
// a bounded number of questions at once. An answer that is late, or none, or beyond the contract
// (api/plusone/guard/v1) is a failure. When half of the questions fail, the checker is left alone for a moment, and then
// asked one question to see whether it answers again. A failure lets the change in or not, as the Client was told.
//
// What the checker writes never gets into a log or an error, except the reason of a refusal: it may repeat the token.
package checker
