const root = document.documentElement, bar = document.getElementById("toggles");
const theme = document.createElement("button");
theme.id = "theme";
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); };
nameTheme();
bar.append(theme);
