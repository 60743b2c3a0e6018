package flush

// ListStatements are those that read the first page of a list, and the others.
var ListStatements = map[string]string{
	"first likers": listLikersSQL, "more likers": moreLikersSQL, "first liked": listLikedSQL, "more liked": moreLikedSQL,
}

// LikesStatements are those that read the states of pairs: of one key, and of any.
var LikesStatements = map[string]string{"text, text[]": likesOfKeySQL, "text[], text[]": likesSQL}
