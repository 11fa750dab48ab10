# gnuplot -e "raw='DIR'; out='DIR'" plot.gp: the plots of what report.py has put into `raw`.

load raw . "/settings.gp" # backends, builds (their number), note
title_of(backend) = backend eq "libc" ? "glibc" : backend
rows = words(backends)
height = 130.0 + 200 * rows

# Okabe and Ito's palette, which the colour-blind can tell apart: bare, zmalloc, prefix, and the three ledgers.
array colour[6] = ["#7f7f7f", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7"]
do for [i = 1:6] { set linetype i lc rgb colour[i] lw 2 pt 7 ps 0.6 }

set border 3 lc rgb "#444444"
set tics nomirror scale 0.5 textcolor rgb "#333333"
set grid ytics lc rgb "#dddddd" lt 1 lw 1
set style histogram clustered gap 1.5
set style fill solid 1.0 noborder
set boxwidth 0.9
set datafile missing "?" columnheaders
set key noenhanced at screen 0.99, screen 1 - 55.0 / height right top vertical samplen 1 spacing 1.3

# A page has a row of panels for each backend; the first panel has the key, the heading and the note.
set macros
begin_page = 'set terminal svg size 1000, height font "DejaVu Sans,12" background "#ffffff"; \
    set output out . "/" . name . ".svg"; \
    set label 1 heading at screen 0.5, screen 1 - 18.0 / height center font ",14"; \
    set label 2 note at screen 0.01, screen 34.0 / height left font ",8" textcolor rgb "#777777" noenhanced; \
    set key on; \
    set multiplot layout rows, columns margins 0.07, 0.84, 75.0 / height, 1 - 65.0 / height \
        spacing 0.05, 55.0 / height'
after_panel = 'unset key; unset label 1; unset label 2'
end_page = 'unset multiplot; unset output'

columns = 1
set style data histograms
set yrange [0:*]
set arrow 1 from graph 0, first 1 to graph 1, first 1 nohead lc rgb "#444444" lw 1.5 dt 2 front

name = "ratios"
heading = "Time per operation against the bare backend, 2 threads"
@begin_page
set xrange [-0.6:7.6]
do for [backend in backends] {
    set title title_of(backend) offset 0, -0.7
    set ylabel "ratio" offset 0.5
    plot for [c = 2:6] raw . "/ratio-" . backend . ".dat" using c:xticlabels(1) lt c title columnheader(c)
    @after_panel
}
@end_page

set offsets 0, 0, graph 0.12, 0
name = "builds"
heading = "zmalloc against the bare backend: geometric mean of five workloads at 1 and 2 threads"
@begin_page
set xrange [-0.6:builds - 0.4]
do for [backend in backends] {
    set title title_of(backend) offset 0, -0.7
    set ylabel "ratio" offset 0.5
    file = raw . "/builds-" . backend . ".dat"
    plot for [c = 2:3] file using c:xticlabels(1) lt c title columnheader(c), \
        for [c = 2:3] file using ($0 + (c - 2.5) / 3.5):(column(c)):(sprintf("%.2f", column(c))) with labels \
            offset 0, 0.6 font ",10" notitle
    @after_panel
}
@end_page

unset arrow 1
unset offsets
name = "memory"
heading = "Resident memory per live block beyond its size, 1 million blocks"
@begin_page
set xrange [-0.6:2.6]
do for [backend in backends] {
    set title title_of(backend) offset 0, -0.7
    set ylabel "bytes"
    plot for [c = 2:4] raw . "/memory-" . backend . ".dat" using c:xticlabels(1) lt c - 1 title columnheader(c)
    @after_panel
}
@end_page

columns = 3
set style data linespoints
set xrange [-0.2:*]
name = "scaling"
heading = "Nanoseconds of one processor per operation, by number of threads"
@begin_page
do for [backend in backends] {
    do for [workload in "pair larson handover"] {
        set title title_of(backend) . ": " . workload offset 0, -0.7
        if (workload eq "pair") { set ylabel "ns" } else { unset ylabel }
        plot for [c = 2:7] raw . "/scaling-" . backend . "-" . workload . ".dat" using 0:c:xticlabels(1) lt c - 1 \
            title columnheader(c)
        @after_panel
    }
}
@end_page
