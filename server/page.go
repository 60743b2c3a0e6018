package server

import (
	"fmt"

	"github.com/plusone-dev/plusone/internal/counter"
)

// defaultPageSize is the page_size of a request that has none.
const defaultPageSize = 100

// pageRequest is what the requests for lists have in common.
type pageRequest interface {
	GetPageSize() int32
	GetPageToken() string
}

// page is the part of a list that a request asks for.
type page struct {
	list  list
	of    string // the key or actor whose list it is
	size  int
	after counter.LikeCursor
}

// pageSize is how many likes a request asks for. It may be out of range.
func pageSize(req pageRequest) int {
	if n := int(req.GetPageSize()); n != 0 {
		return n
	}
	return defaultPageSize
}

// checkPage returns the page that a request asks for. The page is valid only if v stays empty.
func checkPage(l list, of string, req pageRequest, v *violations) page {
	p := page{list: l, of: of, size: pageSize(req)}
	if p.size < 1 || p.size > counter.MaxListed {
		v.add("page_size", "page_size", fmt.Sprintf("must be 0 to %d, not %d", counter.MaxListed, p.size))
	}
	if token := req.GetPageToken(); token != "" {
		var ok bool
		if p.after, ok = parsePageToken(l, of, token); !ok {
			v.add("page_token", "page_token", "must be a next_page_token of the same list")
		}
	}
	return p
}

// cut cuts a list, of which one like more than the page was asked for, to the page. nextToken is empty on the last
// page.
func (p page) cut(likes []counter.Liked) (_ []counter.Liked, nextToken string) {
	if len(likes) <= p.size {
		return likes, ""
	}
	likes = likes[:p.size]
	return likes, pageToken(p.list, p.of, p.list.cursor(likes[p.size-1]))
}
