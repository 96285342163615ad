package rest

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"cairn/record"
	"cairn/store"
)

// The first system's routes. They keep its paths, its field name and its plain
// answers, in a bucket of their own that is made with the first file.

const firstHint = "curl -F archivo=@FILE http://localhost:5000/cargar"

func badForm(title string) *Problem {
	return problem(http.StatusBadRequest, "invalid-body", title, firstHint)
}

// cargar stores the file in the field archivo of a form. The form is read to its
// end before the file is stored: one that is cut off stores nothing.
func (f *face) cargar(c echo.Context) error {
	r := c.Request()
	body := &clientBody{ReadCloser: r.Body}
	body.limit(maxForm)
	r.Body = body
	mr, err := r.MultipartReader()
	if err != nil {
		return badForm("a multipart form with the field archivo is expected")
	}
	part, err := fileOf(mr)
	if err != nil {
		return body.blame(err)
	}
	name, err := fileName(part)
	if err != nil {
		return err
	}
	if err := f.ensureBucket(r.Context(), FirstBucket); err != nil {
		return err
	}
	body.limited = false
	opt := store.PutOptions{Size: -1, Attrs: record.Attrs{ContentType: part.Header.Get("Content-Type")}}
	o, err := f.store.Put(r.Context(), FirstBucket, name, &formFile{part: part, form: mr, body: body}, opt)
	if err != nil {
		return body.blame(err)
	}
	return c.JSON(http.StatusOK, map[string]any{"archivo": o.Key, "bytes": o.Size, "version": o.Version.String()})
}

// fileOf skips to the field archivo.
func fileOf(mr *multipart.Reader) (*multipart.Part, error) {
	for {
		part, err := mr.NextRawPart()
		if err == io.EOF {
			return nil, badForm("the form has no field archivo")
		}
		if err != nil {
			return nil, badForm("the form is not well formed")
		}
		if part.FormName() == "archivo" {
			return part, nil
		}
	}
}

// fileName is the name as the client sent it. One that cannot be a single
// element of a path is refused rather than cut: what is stored under a name must
// be found under it.
func fileName(part *multipart.Part) (string, error) {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	name := params["filename"]
	if err != nil || name == "" {
		return "", badForm("the field archivo is not a file with a name")
	}
	if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." || !utf8.ValidString(name) {
		return "", problem(http.StatusBadRequest, "invalid-key", "a file's name is UTF-8 without slashes, and not a dot or two", "")
	}
	return name, nil
}

// formFile reads a file out of a form and ends only when the form does.
type formFile struct {
	part  *multipart.Part
	form  *multipart.Reader
	body  *clientBody
	ended error
}

func (f *formFile) Read(p []byte) (int, error) {
	if f.ended != nil {
		return 0, f.ended
	}
	n, err := f.part.Read(p)
	if err == nil {
		return n, nil
	}
	if f.ended = err; err == io.EOF {
		f.body.limit(maxForm)
		f.ended = f.finish()
	}
	return n, f.ended
}

// finish reads what follows the file; a second one would be lost.
func (f *formFile) finish() error {
	for {
		part, err := f.form.NextRawPart()
		switch {
		case err == io.EOF:
			return io.EOF
		case err != nil:
			return errors.Join(badForm("the form is cut off"), err)
		case part.FormName() == "archivo":
			return badForm("the form has the field archivo twice; send one file at a time")
		}
	}
}

func (f *face) descargar(c echo.Context) error {
	name, err := unescape(c.Param("name"))
	if err != nil {
		return err
	}
	return f.serve(c, FirstBucket, name, store.GetOptions{})
}

func (f *face) eliminar(c echo.Context) error {
	name, err := unescape(c.Param("name"))
	if err != nil {
		return err
	}
	if _, err := f.store.Delete(c.Request().Context(), FirstBucket, name, store.Conditions{}); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"eliminado": name})
}
