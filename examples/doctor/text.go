package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
)

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// cells is a node's line. What it did not tell is not zero.
func cells(n doctor.NodeSummary) []string {
	if n.Server == "" {
		return []string{n.Addr, "?", "?", "?", "?", "?", "?"}
	}
	limit := "no limit"
	if n.MaxMemory != 0 {
		limit = megabytes(n.MaxMemory)
	}
	return []string{n.Addr, n.Role, n.Server, megabytes(n.Used), limit, n.Policy, strconv.FormatInt(n.Keys, 10)}
}

// policies returns each policy that a node has, with the verdicts of the first such node.
func policies(report doctor.Report) (names []string, verdicts map[string][]doctor.Verdict) {
	verdicts = map[string][]doctor.Verdict{}
	nodes := map[string]string{}
	for _, v := range report.Verdicts {
		if nodes[v.Policy] == "" {
			nodes[v.Policy] = v.Node
			names = append(names, v.Policy)
		}
		if nodes[v.Policy] == v.Node {
			verdicts[v.Policy] = append(verdicts[v.Policy], v)
		}
	}
	return names, verdicts
}

func summary(report doctor.Report) string {
	count := map[doctor.Severity]int{}
	for _, f := range report.Findings {
		count[f.Severity]++
	}
	return fmt.Sprintf("%d failed, %d warnings, %d unknown, %d notes, %d fine", count[doctor.Fail], count[doctor.Warn], count[doctor.Unknown], count[doctor.Info], count[doctor.OK])
}

func writeText(out io.Writer, report doctor.Report, all bool) error {
	var b bytes.Buffer
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tROLE\tSERVER\tUSED\tMAXMEMORY\tPOLICY\tKEYS")
	for _, n := range report.Nodes {
		fmt.Fprintln(table, strings.Join(cells(n), "\t"))
	}
	if len(report.Keys) > 0 {
		fmt.Fprintln(table, "\nKEYS\tPATTERN\tLOOKED AT\tWITHOUT TTL")
		for _, k := range report.Keys {
			scope := ""
			if k.All {
				scope = " (all)"
			}
			fmt.Fprintf(table, "%s\t%s\t%d%s\t%d\n", k.Prefix, orUnknown(k.Pattern), k.Sampled, scope, k.NoTTL)
		}
	}
	names, verdicts := policies(report)
	if len(names) > 0 {
		fmt.Fprint(table, "\nSAFE FOR (* used)")
		for _, v := range verdicts[names[0]] {
			fmt.Fprint(table, "\t", mark(v))
		}
		fmt.Fprintln(table)
		for _, name := range names {
			fmt.Fprint(table, name)
			for _, v := range verdicts[name] {
				fmt.Fprint(table, "\t", v.Severity)
			}
			fmt.Fprintln(table)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	list := report.Groups(all)
	for _, g := range list {
		if g.Severity == doctor.OK {
			fmt.Fprintf(&b, "\n%-7s %s  %s", g.Severity, g.ID, g.Observed)
			continue
		}
		fmt.Fprintf(&b, "\n%-7s %s", g.Severity, g.ID)
		if g.Pattern != "" {
			fmt.Fprintf(&b, " %s", g.Pattern)
		}
		fmt.Fprintf(&b, "  %s\n", strings.Join(g.Nodes, ", "))
		for _, line := range lines(g.Finding) {
			fmt.Fprintf(&b, "        %-9s %s\n", line[0], line[1])
		}
	}
	fmt.Fprintf(&b, "\n\n%s\n", summary(report))
	_, err := out.Write(b.Bytes())
	return err
}

func mark(v doctor.Verdict) string {
	if v.Used {
		return string(v.Pattern) + "*"
	}
	return string(v.Pattern)
}

func orUnknown(p doctor.Pattern) string {
	if p == "" {
		return "?"
	}
	return string(p)
}

// lines are the parts of a finding that it has.
func lines(f doctor.Finding) [][2]string {
	list := [][2]string{{"observed", f.Observed}}
	for _, line := range [][2]string{{"expected", f.Expected}, {"why", f.Why}, {"fix", f.Fix}} {
		if line[1] != "" {
			list = append(list, line)
		}
	}
	if f.Severity != doctor.Unknown {
		list = append(list, [2]string{"more", f.Runbook})
	}
	return list
}

// cell is text in a Markdown table.
var cell = strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "*", `\*`)

func writeMarkdown(out io.Writer, report doctor.Report, all bool) error {
	var b bytes.Buffer
	b.WriteString("# Redis: " + summary(report) + "\n\n| node | role | server | used | maxmemory | policy | keys |\n|---|---|---|---|---|---|---|\n")
	for _, n := range report.Nodes {
		b.WriteString("| " + strings.Join(cells(n), " | ") + " |\n")
	}
	names, verdicts := policies(report)
	if len(names) > 0 {
		b.WriteString("\n| safe for (used ones bold) |")
		for _, v := range verdicts[names[0]] {
			if v.Used {
				fmt.Fprintf(&b, " **%s** |", v.Pattern)
			} else {
				fmt.Fprintf(&b, " %s |", v.Pattern)
			}
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(verdicts[names[0]])) + "\n")
		for _, name := range names {
			fmt.Fprintf(&b, "| %s |", name)
			for _, v := range verdicts[name] {
				fmt.Fprintf(&b, " %s |", v.Severity)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n| | check | node | observed | expected | why | fix |\n|---|---|---|---|---|---|---|\n")
	list := report.Groups(all)
	for _, g := range list {
		id := g.ID
		if !strings.Contains(id, " ") {
			id = "[" + id + "](" + g.Runbook + ")"
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s | %s | %s | %s |\n", g.Severity, id, g.Pattern, strings.Join(g.Nodes, ", "),
			cell.Replace(g.Observed), cell.Replace(g.Expected), cell.Replace(g.Why), cell.Replace(g.Fix))
	}
	_, err := out.Write(b.Bytes())
	return err
}
