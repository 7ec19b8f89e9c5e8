module moelink

go 1.21
