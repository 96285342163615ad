package link

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"cairn/id"
	"cairn/node"
)

// Code says which of the contract's errors an answer is.
type Code uint8

const (
	CodeNone Code = iota
	CodeNotFound
	CodeDamaged
	CodeUnavailable
	CodeMissing
	CodeFenced
	CodeStalePut
	CodeFull
	CodeConflict
	CodeClosed
	CodeNewer
	CodeNotBegun
	CodeUnknownCall
)

// codes orders the errors: one that is several of them goes by the first. What a node
// cannot know comes before what it says for certain.
var codes = []struct {
	err  error
	code Code
}{
	{node.ErrClosed, CodeClosed},
	{node.ErrMissing, CodeMissing},
	{node.ErrFenced, CodeFenced},
	{node.ErrStalePut, CodeStalePut},
	{node.ErrConflict, CodeConflict},
	{node.ErrFull, CodeFull},
	{id.ErrNewer, CodeNewer},
	{node.ErrUnavailable, CodeUnavailable},
	{node.ErrNotFound, CodeNotFound},
	{node.ErrDamaged, CodeDamaged},
}

// CodeOf is the code of an error; one that the contract does not know is [CodeUnavailable].
func CodeOf(err error) Code {
	if err == nil {
		return CodeNone
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return CodeUnavailable
}

// Fail makes an answer of an error.
func (a *Answer) Fail(err error) {
	a.Code, a.Words = CodeOf(err), Words(err)
	var room *node.RoomError
	if a.Code == CodeFull && errors.As(err, &room) {
		a.Room = &Room{Dir: cut(room.Dir, MaxWords), Why: uint8(room.Why), Free: room.Free, Need: room.Need}
	}
}

// Words are what an error says, as they are sent.
func Words(err error) string {
	return cut(strings.ToValidUTF8(err.Error(), "?"), MaxWords)
}

// ErrNotBegun says that a node has not begun what it was asked: it may be sent again.
// It is [node.ErrUnavailable].
var ErrNotBegun = fmt.Errorf("%w: it has not begun", node.ErrUnavailable)

// Err is the error that an answer stands for, nil when it is none.
func (a *Answer) Err() error {
	base := node.ErrUnavailable
	switch a.Code {
	case CodeNone:
		return nil
	case CodeNotBegun:
		base = ErrNotBegun
	case CodeNewer:
		base = errors.Join(node.ErrUnavailable, id.ErrNewer)
	case CodeFull:
		if r := a.Room; r != nil {
			return &node.RoomError{Dir: said(r.Dir), Why: node.Purpose(r.Why), Free: r.Free, Need: r.Need}
		}
		base = node.ErrFull
	case CodeClosed: // its process is ending: another may be there soon
	default:
		for _, c := range codes {
			if c.code == a.Code {
				base = c.err
			}
		}
	}
	return saidError{base, said(a.Words)}
}

// saidError is what a node said, in its own words.
type saidError struct {
	base  error
	words string
}

func (e saidError) Error() string {
	if e.words == "" {
		return e.base.Error()
	}
	return e.words
}
func (e saidError) Unwrap() error { return e.base }

// said makes a node's words harmless: printable, of bounded length.
func said(s string) string {
	s = cut(strings.ToValidUTF8(s, "?"), MaxWords)
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
