package server

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// What is looked at in the requests of the hot path is what a look at all their fields finds, so that no field is
// forgotten, and requests that are not listed are looked at in this way.
func TestNoFieldIsForgotten(t *testing.T) {
	t.Parallel()
	protoregistry.GlobalFiles.RangeFilesByPackage("plusone.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				checkFields(t, methods.Get(j).Input())
			}
		}
		return true
	})
}

func checkFields(t *testing.T, d protoreflect.MessageDescriptor) {
	t.Helper()
	messageType, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range textFields(d) {
		for _, value := range []string{"views/a", "other/a", "user:ben", "user:ann"} {
			req := messageType.New()
			set(req, path, value)
			listed, all := limits{who: people["ben"]}, limits{who: people["ben"]}
			listed.request(req.Interface())
			all.message(req)
			if listed.foreignActor != all.foreignActor || !listed.foreignNamespace && all.foreignNamespace {
				t.Errorf("%s with %s %q: looked at it is %+v, its fields are %+v", d.FullName(), path[len(path)-1].Name(), value, listed, all)
			}
		}
	}
}

// textFields are the ways to all strings of a message.
func textFields(d protoreflect.MessageDescriptor) (paths [][]protoreflect.FieldDescriptor) {
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		switch field.Kind() {
		case protoreflect.StringKind:
			paths = append(paths, []protoreflect.FieldDescriptor{field})
		case protoreflect.MessageKind:
			for _, rest := range textFields(field.Message()) {
				paths = append(paths, append([]protoreflect.FieldDescriptor{field}, rest...))
			}
		}
	}
	return paths
}

func set(m protoreflect.Message, path []protoreflect.FieldDescriptor, value string) {
	field := path[0]
	switch {
	case len(path) == 1 && field.IsList():
		m.Mutable(field).List().Append(protoreflect.ValueOfString(value))
	case len(path) == 1:
		m.Set(field, protoreflect.ValueOfString(value))
	case field.IsList():
		set(m.Mutable(field).List().AppendMutable().Message(), path[1:], value)
	default:
		set(m.Mutable(field).Message(), path[1:], value)
	}
}

// Requests that the server does not list are looked at by the names of their fields.
func TestUnlistedRequests(t *testing.T) {
	t.Parallel()
	dynamic := func(m proto.Message) *dynamicpb.Message {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		d := dynamicpb.NewMessage(m.ProtoReflect().Descriptor())
		if err := proto.Unmarshal(raw, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	entries := &plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{{Key: "views/a"}, {Key: "other/a"}}}
	for i, test := range []struct {
		who              string
		req              any
		namespace, actor bool
	}{
		{"views", dynamic(&plusonev1.GetRequest{Key: "views/a"}), false, false},
		{"views", dynamic(&plusonev1.GetRequest{Key: "other/a"}), true, false},
		{"views", dynamic(&plusonev1.BatchGetRequest{Keys: []string{"views/a", "other/a"}}), true, false},
		{"views", dynamic(entries), true, false},
		{"ann", dynamic(entries), false, false},
		{"views", dynamic(&plusonev1.ListLikedRequest{Actor: "user:any"}), true, false}, // about all namespaces
		{"ann", dynamic(&plusonev1.ListLikedRequest{Actor: "user:ann"}), false, false},
		{"ann", dynamic(&plusonev1.ListLikedRequest{Actor: "user:ben"}), false, true},
		{"views", "no message", true, false},
	} {
		l := limits{who: people[test.who], everywhere: slices.Contains(people[test.who].Namespaces, "*")}
		l.request(test.req)
		if l.foreignNamespace != test.namespace || l.foreignActor != test.actor {
			t.Errorf("case %d: %+v", i, l)
		}
	}
}
