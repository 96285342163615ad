package rest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/id"
	"cairn/store"
)

// TestDamaged: what is lost is named page by page, and a cursor has one spelling.
func TestDamaged(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.store.damaged = append(r.store.damaged, store.DamagedObject{Bucket: "main", Key: fmt.Sprint("dir/ü ", i), Version: id.Version{Seq: uint64(i + 1)}, Current: i%2 == 0, Size: 7, Time: time.Unix(1_700_000_000, 0)})
	}
	var names []string
	for cursor, pages := "", 0; ; pages++ {
		var p damagedJSON
		if err := json.Unmarshal([]byte(r.want(200, "", "GET", damagedPath+"?limit=2"+cursor, "").body), &p); err != nil || len(p.Objects) > 2 {
			t.Fatalf("%+v, %v", p, err)
		}
		for _, o := range p.Objects {
			names = append(names, fmt.Sprintf("%s %v %d %d", o.Key, o.Current, o.Size, o.Modified.Year()))
		}
		if !p.More {
			if pages != 2 || p.Cursor != "" {
				t.Errorf("%d pages before the last, which is %+v", pages, p)
			}
			break
		}
		if strings.ContainsAny(p.Cursor, "+/=&") {
			t.Errorf("a cursor that needs escaping: %s", p.Cursor)
		}
		cursor = "&cursor=" + p.Cursor
	}
	if got, want := strings.Join(names, ","), "dir/ü 0 true 7 2023,dir/ü 1 false 7 2023,dir/ü 2 true 7 2023,dir/ü 3 false 7 2023,dir/ü 4 true 7 2023"; got != want {
		t.Errorf("lost are %s, want %s", got, want)
	}
	good := formatDamagedCursor(store.DamagedCursor{Bucket: 3, Key: "k"})
	if c, err := parseDamagedCursor(good); err != nil || c.Bucket != 3 || c.Key != "k" {
		t.Errorf("%s is read as %+v, %v", good, c, err)
	}
	for _, bad := range []string{"", ".", "3", "x" + good, "0" + good, good + "=", strings.TrimPrefix(good, "3."), "3." + strings.Repeat("A", 5000)} {
		r.want(400, "invalid-cursor", "GET", damagedPath+"?cursor="+bad, "")
	}
	r.want(400, "invalid-parameter", "GET", damagedPath+"?limit=0", "")
	r.want(400, "invalid-parameter", "GET", damagedPath+"?bucket=main", "")
	r.want(401, "unauthorized", "GET", damagedPath, "", "Authorization: Bearer x")
}
