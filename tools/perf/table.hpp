// Figures and lines of tables.
#pragma once

#include <string>

namespace perf {

// Four significant digits as far as that goes.
std::string number(double value);
// Of a fraction; with_sign: also where it is positive.
std::string percent(double value, bool with_sign);
// Without blanks at the end.
void print_line(std::string line);

}  // namespace perf
