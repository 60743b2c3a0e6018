package main

import (
	"testing"

	"google.golang.org/grpc"
	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	channelz "google.golang.org/grpc/channelz/service"
)

// channelzService is what is registered with it.
type channelzService struct{ channelzpb.ChannelzServer }

func (s *channelzService) RegisterService(_ *grpc.ServiceDesc, service any) {
	s.ChannelzServer, _ = service.(channelzpb.ChannelzServer)
}

// What channelz tells is collected only where somebody may ask for it, as it costs each call.
func TestChannelzIsOffUnlessItIsServed(t *testing.T) {
	var service channelzService
	channelz.RegisterChannelzServiceToServer(&service)
	servers := func() int {
		t.Helper()
		resp, err := service.GetServers(t.Context(), &channelzpb.GetServersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Server)
	}
	grpc.NewServer().Stop()
	if n := servers(); n != 0 {
		t.Errorf("%d servers are told of without --admin-addr", n)
	}
	collectChannelz(true)
	t.Cleanup(func() { collectChannelz(false) })
	s := grpc.NewServer()
	defer s.Stop()
	if n := servers(); n != 1 {
		t.Errorf("%d servers are told of, want 1", n)
	}
}
