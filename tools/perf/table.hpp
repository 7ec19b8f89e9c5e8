// Tables: figures, lines, columns.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace perf {

// Four significant digits as far as that goes.
std::string number(double value);
// Of a fraction; with_sign: also where it is positive.
std::string percent(double value, bool with_sign);
// A field of a row. Both throw json::out_of_range when the row has none.
std::string count(const nlohmann::json &row, const char *key);
double value(const nlohmann::json &row, const char *key);
// Without blanks at the end.
void print_line(std::string line);

struct Column {
    const char *head;
    const char *unit;
    int width;  // negative: to the left
    std::string (*text)(const nlohmann::json &row);  // may throw json::out_of_range: the row has none
    const char *legend;
};

// How a command shows its rows.
struct Table {
    std::string title;
    std::vector<Column> columns;
    std::vector<std::string> remarks;                                 // lines below the legend
    std::function<std::string(const nlohmann::json &totals)> totals;  // where there are no rows: what was done so far
    std::function<void(nlohmann::json &row)> complete;                // adds what only the launcher knows, or nothing
    std::function<void(nlohmann::json &document, bool show)> finish;  // after the table, or nothing
};

}  // namespace perf
