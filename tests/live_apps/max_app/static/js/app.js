document.title = "é " + document.title;
fetch("../model/labels").then((answer) => answer.json()).then(({ labels }) => {
  document.querySelector("output").textContent = labels.map((label) => label.name).join(", ");
});
