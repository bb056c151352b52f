package main

import (
	"bytes"
	"context"
	_ "embed" // page.html
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"ms":      milliseconds,
	"count":   count,
	"int":     func(n int64) string { return count(float64(n)) },
	"count64": func(n int) string { return count(float64(n)) },
	"hit": func(r row) string {
		if h := r.hitPercent(); h != nil {
			return percentText(*h)
		}
		return "-"
	},
	"msOr":       func(f figure) string { return orUnknown(f, milliseconds) },
	"perRequest": func(bytes, requests int64) string { return count(float64(bytes) / float64(max(requests, 1))) },
	"one":        func(v float64) string { return fmt.Sprintf("%.1f", v) },
	"signed":     func(v float64) string { return fmt.Sprintf("%+.0f", v) },
	"join":       func(s []string) string { return strings.Join(s, " ") },
}).Parse(pageText))

// view is what the page shows.
type view struct {
	*report
	Status   string
	Live     bool
	Lines    []row // rows and total
	Failed   []failureLine
	Charts   []template.HTML
	Spectrum template.HTML
	Sizing   *sizing
	Points   template.JS // the series for the page's own script
	Raw      template.JS // the report without its long parts
}

type failureLine struct {
	Name, Class string
	N           int64
}

func (r *report) view(status string, live bool, o *sizeOptions) (*view, error) {
	v := &view{report: r, Status: status, Live: live, Lines: append(append([]row(nil), r.Rows...), r.Total)}
	for _, f := range r.failures() {
		v.Failed = append(v.Failed, failureLine{f.name, f.class, f.n})
	}
	points := thin(r.Series, maxPoints)
	v.Charts = charts(points)
	if r.Total.Response.HDR != "" {
		spectrum, err := r.spectrum()
		if err != nil {
			return nil, err
		}
		v.Spectrum = spectrum
	}
	if o != nil {
		s := sizeOf(r, *o)
		v.Sizing = &s
	}
	b, err := json.Marshal(points) // which writes < as \u003c, so that nothing ends the script
	if err != nil {
		return nil, err
	}
	v.Points = template.JS(b)
	if !live {
		raw := *r
		raw.Series = points
		if b, err = json.Marshal(&raw); err != nil {
			return nil, err
		}
		v.Raw = template.JS(b)
	}
	return v, nil
}

// writeHTML writes the report as one page that needs nothing else.
func (r *report) writeHTML(w io.Writer, o sizeOptions) error {
	v, err := r.view(fmt.Sprintf("%.1fs", r.Seconds), false, &o)
	if err != nil {
		return err
	}
	return pageTemplate.Execute(w, v)
}

// page is the live page. A nil one does nothing.
type page struct {
	addr   string
	server *http.Server
	mu     sync.Mutex
	text   []byte        // what main shows at the moment
	next   chan struct{} // closed when it changes
	ended  chan struct{}
	served chan error
}

// servePage serves the live page, on this machine only unless the address says more.
func servePage(addr string) (*page, error) {
	if strings.HasPrefix(addr, ":") {
		addr = "127.0.0.1" + addr
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--web: %w", err)
	}
	p := &page{addr: l.Addr().String(), next: make(chan struct{}), ended: make(chan struct{}), served: make(chan error, 1)}
	p.status("beginning")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		v := &view{report: &report{}, Live: true}
		_ = pageTemplate.Execute(w, v) // the reader may have gone
	})
	mux.HandleFunc("GET /events", p.events)
	p.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { p.served <- p.server.Serve(l) }()
	return p, nil
}

// events sends what main shows whenever it changes, as server-sent events.
func (p *page) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	for {
		p.mu.Lock()
		text, next := p.text, p.next
		p.mu.Unlock()
		b, err := json.Marshal(string(text))
		if err != nil {
			return
		}
		_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second)) // else a reader that hangs is waited for
		if _, err := fmt.Fprintf(w, "data: %s\n\n", b); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-next:
		case <-r.Context().Done():
			return
		case <-p.ended:
			select {
			case <-next: // the last state
				continue
			default:
				return
			}
		}
	}
}

func (p *page) set(text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
	close(p.next)
	p.next = make(chan struct{})
}

func (p *page) status(text string) {
	if p != nil {
		p.set([]byte("<p class=status>" + template.HTMLEscapeString(text) + "</p>"))
	}
}

func (p *page) show(r *report, status string) {
	if p == nil {
		return
	}
	v, err := r.view(status, true, nil)
	if err != nil {
		return
	}
	var b bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&b, "main", v); err == nil {
		p.set(b.Bytes())
	}
}

func (p *page) close() {
	close(p.ended)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if p.server.Shutdown(ctx) != nil {
		_ = p.server.Close() // it has to end
	}
	if err := <-p.served; !errors.Is(err, http.ErrServerClosed) {
		return
	}
}
