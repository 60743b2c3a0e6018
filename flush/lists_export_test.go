package flush

// ListStatements are those that read the first page of a list, and the others.
var ListStatements = map[string]string{
	"first likers": listLikersSQL, "more likers": moreLikersSQL, "first liked": listLikedSQL, "more liked": moreLikedSQL,
}
